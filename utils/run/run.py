"""One training run in its directory: resuming, progress, checkpoints, the log, and stopping cleanly."""

import reprlib
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from utils.console import say
from utils.distributed import Compute, finish, from_main, in_main, sum_over_processes
from utils.environment import environment, resumed_in
from utils.errors import InputError, first_line
from utils.plots import plot_class_counts, plot_history
from utils.run.checkpoint import CheckpointWriter, holds_run, open_checkpoint
from utils.run.directory import Attempts, RunDirectory, describe
from utils.run.guard import StepGuard
from utils.run.meter import EpochMeter
from utils.run.signals import EXIT_STOPPED, StopRequest
from utils.run.stored import ARGUMENTS, DATA_FLAGS, differs, require_class_counts
from utils.run.weights import load_weights, network_weights

VOTE_EVERY = 16  # steps between votes of several processes on stopping and saving
PROGRESS_SECONDS = {True: 2, False: 30}  # between updates, on a terminal (True) or elsewhere

# Flags that may change when a run is resumed: how and where it runs, and where its data are (see `restore`).
FREE_FLAGS = {"resume", "gpu", "num_workers", "srp", "tb", "checkpoint_every_minutes", "max_bad_steps"}
FREE_FLAGS |= DATA_FLAGS | {"compile", "figures"}


class Trained(NamedTuple):
    """Everything that training changes and a checkpoint restores."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    guard: StepGuard


class Run:
    """The state of a run and its files; made by :func:`open_run`.

    Attributes:
        epoch, step: the next ones, counted from 0; between epochs ``step`` is 0.
        meter: :class:`EpochMeter` of the current epoch.
        history: one record per finished epoch, as in ``log.jsonl``.
    """

    def __init__(self, out, settings, compute, loader, class_counts, trained, stop):
        self.out, self.settings, self.compute, self.loader = out, settings, compute, loader
        self.class_counts, self.trained, self.stop = class_counts, trained, stop
        self.num_epochs, self.save_seconds = settings["epochs"], 60 * settings["checkpoint_every_minutes"]
        self.epoch, self.step, self.history = 0, 0, []
        self.meter = EpochMeter(len(class_counts), compute.device)
        self.seconds = 0.0  # of the current epoch, spent before this process started
        self.begun = time.monotonic()
        self.stopping = False
        self.attempt, self.environment = Attempts(), environment(compute.device)
        self.writer = None if out is None else CheckpointWriter(out.folder, self.attempt)
        self.last_save = self.started = self.last_progress = time.monotonic()
        self.steps_here = 0

    def epochs(self) -> Iterator[int]:
        """Yields the numbers of the remaining epochs; ends early after a request to stop."""
        while self.epoch < self.num_epochs and not self.stopping:
            self.begun = time.monotonic() - self.seconds
            yield self.epoch

    def batches(self) -> Iterator[tuple]:
        """Yields pairs (step, Batch) for the rest of the epoch; ends early after a request to stop.

        After each step it updates the progress bar, and saves a checkpoint if one is due.
        """
        title, terminal = f"epoch {self.epoch + 1}/{self.num_epochs}", sys.stderr.isatty()
        quiet = not self.compute.is_main or not terminal
        with tqdm(total=len(self.loader), initial=self.step, desc=title, leave=False, disable=quiet) as bar:
            for batch in self.loader.epoch(self.epoch, self.step):
                yield self.step, batch
                self.step += 1
                self.steps_here += 1
                bar.update()
                if time.monotonic() - self.last_progress > PROGRESS_SECONDS[terminal]:
                    self.last_progress = time.monotonic()
                    if terminal:
                        bar.set_postfix_str(self._pace())
                    elif self.compute.is_main:
                        say(f"{title}, step {self.step}/{len(self.loader)}: {self._pace()}", sys.stderr)
                self.stopping, save = self._vote()
                if (self.stopping or save) and not self.epoch_is_whole:
                    self.trained.guard.check()
                    self.save()
                if self.stopping:
                    break

    @property
    def epoch_is_whole(self) -> bool:
        """Tells whether every step of the epoch has been made."""
        return self.step == len(self.loader)

    def _vote(self):
        """Returns (whether to stop, whether a checkpoint is due), the same in all processes."""
        if self.compute.world_size > 1 and self.step % VOTE_EVERY and not self.epoch_is_whole:
            return False, False
        due = 0 < self.save_seconds < time.monotonic() - self.last_save
        votes = torch.tensor([float(self.stop.requested), float(due)])
        if self.compute.world_size > 1:
            votes = sum_over_processes(votes.to(self.compute.device)).cpu()
        return (votes > 0).tolist()

    def _pace(self):
        """Describes the epoch's loss so far, training images per second, and the time left for the run."""
        rate = self.steps_here / (time.monotonic() - self.started)
        left = (self.num_epochs - self.epoch) * len(self.loader) - self.step
        images = rate * self.loader.batch_size
        hours, minutes = divmod(round(left / rate / 60), 60)
        return (
            f"loss {self.meter.running_loss():.4f}, {images:,.0f} images/s, {hours} h {minutes:02d} min left"
        )

    def end_epoch(self, learning_rate: float, val_accuracy: dict | None = None) -> None:
        """Records a finished epoch, saves it and prints a line about it."""
        record = {"epoch": self.epoch + 1, "lr": learning_rate} | self.meter.losses()
        record["train_accuracy"] = self.meter.accuracies(self.class_counts)
        if val_accuracy is not None:
            record["val_accuracy"] = val_accuracy
        record["seconds"] = round(time.monotonic() - self.begun, 3)
        self.history.append(record)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.meter = EpochMeter(len(self.class_counts), self.compute.device)
        self.save()
        if self.compute.is_main:
            self.write_log()
            say(describe(record, self.num_epochs))
        for line in self.loader.report():  # each process has read its own files
            say(line)

    def save(self) -> None:
        """Copies the state and has it written in the background; every process must call it."""
        meter = self.meter.state()  # summed over processes
        if self.compute.is_main:
            model, criterion, optimizer, guard = self.trained
            self.writer.save(
                {
                    "model": model.state_dict(),
                    "criterion": criterion.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                    "meter": meter,
                    "epoch": self.epoch,
                    "step": self.step,
                    "history": self.history,
                    "seconds": time.monotonic() - self.begun if self.step else 0.0,
                    "bad_in_row": guard.bad_in_row,
                    "args": self.settings,
                    "class_counts": self.class_counts,
                    "num_outliers": self.loader.num_outliers,
                    "environment": self.environment,
                }
            )
        self.last_save = time.monotonic()

    def write_log(self) -> None:
        """Writes the history of all finished epochs."""
        self.attempt("the log", self.out.write_log, self.history)

    def _draw(self, name, plot, values):
        picture = f"{name}.{self.settings['figures']}"
        self.attempt(picture, plot, values, self.out.folder / picture)

    def begin(self, state: dict | None) -> None:
        """Resumes the run from ``state``, or starts it, and describes it in the run directory.

        Raises:
            InputError: the processes found different checkpoints, or ``state`` does not fit.
        """
        place = None if state is None else [state["epoch"], state["step"]]
        disagrees = float(place != from_main(place))
        if sum_over_processes(torch.tensor([disagrees], device=self.compute.device)).item():
            folder = self.settings["srp"]
            raise InputError(
                f"the processes see different checkpoints in {folder}; it has to be on a disk that all share"
            )
        if state is not None:
            restore(state, self.trained, self.class_counts, self.loader.num_outliers, len(self.loader))
            self.history, self.epoch, self.step = state["history"], state["epoch"], state["step"]
            self.seconds = state.get("seconds", 0.0)
            self.begun = time.monotonic() - self.seconds
            if self.compute.is_main:  # its sums cover all processes
                self.meter.load_state(state["meter"])
            before = state.get("environment")
            before = before if isinstance(before, dict) else self.environment
            finished = self.epoch == self.num_epochs  # nothing is left to train here
            self.environment = before if finished else resumed_in(before, self.environment)
        if not self.compute.is_main:
            return
        about = {"class_counts": self.class_counts, "environment": self.environment}
        about = self.settings | about | {"num_outliers": self.loader.num_outliers}
        self.attempt(ARGUMENTS, self.out.write_json, ARGUMENTS, about)
        self._draw("class_counts", plot_class_counts, self.class_counts)
        classes, images = len(self.class_counts), sum(self.class_counts)
        say(
            f"{classes} classes, {images:,} images, {len(self.loader)} steps per epoch; {self.loader.where()}"
        )

    def finished(self) -> bool:
        """Writes and draws the history, says where the run is; False if it was stopped.

        Raises:
            InputError: the trained network could not be saved.
        """
        in_main(self.compute, self._finish)  # a launcher ends this process once another one has ended
        return self.epoch == self.num_epochs

    def _finish(self):
        if self.history:  # again: an earlier write may have failed
            self.write_log()
        self._draw("training", plot_history, self.history)
        say(f"run directory: {self.out.folder}")
        saved = not self.attempt.failing("the checkpoint")
        if self.epoch == self.num_epochs and not saved:
            raise InputError(
                f"the last checkpoint in {self.out.folder} is older than the run's end: see the warning "
                "above, then repeat the missing part with --resume"
            )
        if self.epoch < self.num_epochs:
            where = "there" if saved else "the last checkpoint that could be written"
            say(
                f"stopped in epoch {self.epoch + 1} of {self.num_epochs}; --resume continues from {where}",
                sys.stderr,
            )


@contextmanager
def open_run(
    settings: dict, compute: Compute, loader, class_counts: list[int], trained: Trained
) -> Iterator[Run]:
    """Takes the run directory, resumes its run if asked to, and yields the :class:`Run`.

    On the first SIGTERM or SIGINT the current step is finished and saved; the process exits with status 75.

    Args:
        settings: the flags as plain values, with ``srp``, ``epochs``, ``resume``,
            ``checkpoint_every_minutes`` and ``figures``. They are recorded, and compared with those of the
            run to resume.
        loader: gives ``epoch(epoch, start_step)``, an iterator of Batch, and its length in steps.

    Raises:
        InputError: the directory is in use, cannot be written, or holds a run that is not the one to resume;
            the checkpoint is damaged or from another run; the trained network could not be saved.
    """
    folder, resume = Path(settings["srp"]), settings["resume"]
    with run_directory(folder, resume, compute) as out, StopRequest() as stop:
        run = Run(out, settings, compute, loader, class_counts, trained, stop)
        try:
            state = find_checkpoint(folder, resume, settings)
            run.begin(state)
            if compute.is_main and run.epoch == run.num_epochs:
                say(f"this run is already finished: {run.num_epochs} of {run.num_epochs} epochs")
            if state is not None and not resumes_in_place(folder, resume):
                run.save()
            yield run
        finally:
            if run.writer is not None:
                run.writer.close()
        whole = run.finished()
    if not whole:
        finish()
        sys.exit(EXIT_STOPPED)


def resumes_in_place(folder: Path, resume: str | None) -> bool:
    """Tells whether the run to resume is the one in ``folder``."""
    if resume is None:
        return False
    source = Path(resume or folder).resolve()
    return Path(folder).resolve() == (source if source.is_dir() else source.parent)


@contextmanager
def run_directory(folder, resume, compute):
    """Yields the main process's :class:`RunDirectory`, None in the others; if refused, all processes end."""

    def take():
        with ExitStack() as stack:
            out = stack.enter_context(closing(RunDirectory(folder)))
            if _is_used(out.folder) and not resumes_in_place(folder, resume):
                advice = f"--resume {resume} needs another --srp"
                if not resume:
                    advice = "add --resume to continue it, or choose another --srp"
                raise InputError(f"{folder} already holds a run; {advice}")
            stack.pop_all()
        return out

    out = in_main(compute, take)
    with nullcontext() if out is None else closing(out):
        yield out


def _is_used(folder):
    """Tells whether a folder holds a run, or what is left of one without its checkpoints."""
    return holds_run(folder) or (folder / "log.jsonl").exists()


def find_checkpoint(folder: Path, resume: str | None, settings: dict) -> dict | None:
    """Returns the state to resume from, or None for a new run.

    Raises:
        InputError: it is not a checkpoint of a run, or flags that change the run differ from ``settings``.
    """
    if resume is None:
        return None
    source = Path(resume or folder)
    if not resume and not holds_run(source):
        return None
    state = open_checkpoint(source)
    counts = isinstance(state, dict) and type(state.get("epoch")) is type(state.get("step")) is int
    if not counts or not isinstance(state.get("args"), dict) or not isinstance(state.get("optimizer"), dict):
        raise InputError(
            f"{source} is not a checkpoint of train.py or train_imagenet.py and cannot be resumed"
        )
    known = state["args"]
    if known.get("precision") == "auto":  # an older run, which did not record what that was on its device
        known = known | {"precision": settings["precision"]}
    for name, value in settings.items():
        stored = known.get(name, value)
        if name in FREE_FLAGS or not differs(stored, value):
            continue
        if name == "epochs":
            advice = "the schedule depends on it: train a run of that length in another --srp"
        else:
            advice = "omit the flag to keep the run's value, or start a new run in another --srp"
        raise InputError(f"--{name} is {value}, but the run to resume has {reprlib.repr(stored)}; {advice}")
    return state


def restore(state: dict, trained: Trained, class_counts: list[int], num_outliers: int, steps: int) -> None:
    """Restores everything as it was when ``state`` was saved.

    Raises:
        InputError: it is from other training images or outliers, or a run cannot resume from it.
    """
    require_class_counts(state, class_counts)
    if differs(state.get("num_outliers"), num_outliers):
        raise InputError(f"the outliers are not those of the run to resume: there are {num_outliers:,}")
    try:
        load_weights(trained.model, network_weights(state))
        trained.criterion.load_state_dict(state["criterion"])
        load_optimizer(trained.optimizer, state["optimizer"])
        torch.set_rng_state(state["rng"])
        trained.guard.bad_in_row = int(state.get("bad_in_row", 0))
        EpochMeter(len(class_counts), "cpu").load_state(state["meter"])
        position_is_valid = (
            state["epoch"] >= 0 and 0 <= state["step"] < steps and state.get("seconds", 0.0) >= 0
        )
        if not position_is_valid or not isinstance(state["history"], list):
            raise ValueError("its history or its position is not that of a run")
    except InputError:
        raise
    except Exception as error:  # untrusted values can raise anything
        raise InputError(f"the checkpoint cannot be resumed: {first_line(error)}") from error


def load_optimizer(optimizer, stored):
    """Loads the optimiser's running averages from a checkpoint; its settings stay those of the flags.

    Raises:
        ValueError: they are from another kind of optimiser, or do not have the parameters' shapes.
    """
    optimizer.load_state_dict(
        {"state": stored["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    )
    names = (
        {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    )
    for parameter, averages in optimizer.state.items():
        if not isinstance(averages, dict) or averages and averages.keys() != names:
            raise ValueError("its optimiser is of another kind")
        if any(
            value.shape != (() if name == "step" else parameter.shape) for name, value in averages.items()
        ):
            raise ValueError("its optimiser is of other parameters")
