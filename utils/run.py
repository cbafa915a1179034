"""One training run in its directory: lock, checkpoints, log, progress, resuming and stopping."""

import fcntl
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from utils.checkpoint import (
    ARGUMENTS,
    BEST,
    LATEST,
    find_checkpoint,
    holds_run,
    load_checkpoint,
    require_classes,
    resumes_in_place,
    run_folder,
    save_checkpoint,
)
from utils.distributed import Compute, environment, finish, from_main, in_main, resumed_in, sum_over_processes
from utils.errors import InputError, first_line, say
from utils.guard import StepGuard
from utils.history import EpochMeter, add_scalars, best_epoch, describe, doubts, scalar_writer, write_log
from utils.plots import plot_history
from utils.text_files import writable_folder, write_text
from utils.weights import load_weights, network_weights

EXIT_STOPPED = 75  # "try again later" (EX_TEMPFAIL): the run wrote a checkpoint and waits for --resume
VOTE_EVERY = 16  # steps between votes of several processes on stopping and saving
SAVE_SECONDS = 60  # at least, between the checkpoints of short epochs
tqdm.monitor_interval = 0  # no thread of its own: processes that read images are forked


class TrainingData(NamedTuple):
    """What a run trains on: the loader of its batches, images by class, names by class (None if unknown), and
    () -> iterator of (images, labels) held out of training, if any are."""

    loader: Any
    class_counts: list[int]
    class_names: list[str] | None = None
    validation_batches: Callable[[], Iterator[tuple]] | None = None


class Trained(NamedTuple):
    """Everything that training changes and a checkpoint restores."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    guard: StepGuard


def restore(state: dict, trained: Trained, data: TrainingData) -> None:
    """Restores what training changes; raises InputError if ``state`` is from other images or outliers."""
    require_classes(state, data.class_counts, data.class_names)
    theirs, ours = state.get("num_outliers"), data.loader.num_outliers
    if theirs != ours:
        raise InputError(f"there are {ours} outliers, and in the run to resume {theirs}")
    load_weights(trained.model, network_weights(state))
    trained.criterion.load_state_dict(state["criterion"])
    trained.optimizer.load_state_dict(state["optimizer"])
    trained.guard.bad_in_row = state.get("bad_in_row", 0)
    torch.set_rng_state(state["rng"])


class Run:
    """The state of a run and its files; made by :func:`open_run`. ``epoch`` and ``step`` are the next ones,
    counted from 0; ``meter`` is of the current epoch; ``history`` has a record of each finished epoch."""

    def __init__(self, settings, compute, data, trained, stop):
        self.settings, self.compute, self.data, self.trained = settings, compute, data, trained
        self.folder, self.loader, self.stop = Path(settings["srp"]), data.loader, stop
        self.epoch, self.step, self.history = 0, 0, []
        self.meter = EpochMeter(len(data.class_counts), compute.device)
        self.environment = environment(compute.device) | {"processes": compute.world_size}
        self.stopping, self.save_due = False, False
        self.scalars = None  # TensorBoard's writer
        self.unwritten = set()  # files whose last write failed
        self.last_save = None
        self.seconds = 0.0  # of the current epoch, spent before this process started
        self.started = self.begun = time.monotonic()  # begun: the current epoch

    def epochs(self) -> Iterator[int]:
        """Yields the numbers of the remaining epochs; ends early after a request to stop."""
        while not self.finished and not self.stopping:
            self.begun = time.monotonic() - self.seconds
            yield self.epoch

    def batches(self) -> Iterator[tuple]:
        """Yields pairs (step, Batch) for the rest of the epoch; ends early after a request to stop."""
        steps, size, epochs = len(self.loader), self.loader.batch_size, self.settings["epochs"]
        seconds = 2 if sys.stderr.isatty() else 30  # between lines of progress
        bar = tqdm(  # counts the images of the whole run, so it estimates the time left
            desc=f"epoch {self.epoch + 1}/{epochs}",
            initial=size * (self.epoch * steps + self.step),
            total=size * epochs * steps,
            unit=" images",
            unit_scale=True,
            delay=seconds,
            mininterval=seconds,
            miniters=1,
            leave=False,
            disable=not self.compute.is_main,
        )
        validates = self.data.validation_batches is not None  # which can take long
        with bar:
            for batch in self.loader.epoch(self.epoch, self.step):
                yield self.step, batch
                self.step += 1
                if bar.update(size):
                    bar.set_postfix_str(f"loss {self.meter.running_loss():.4f}", refresh=False)
                self.stopping, self.save_due = self._vote()
                if (self.stopping or self.save_due) and (validates or not self.epoch_is_whole):
                    self.trained.guard.check()
                    self.save()
                if self.stopping:
                    break

    @property
    def finished(self) -> bool:
        """Tells whether nothing is left to train: every epoch is, or --patience has run out."""
        since_best = self.epoch - best_epoch(self.history)
        out_of_patience = 0 < self.settings.get("patience", 0) <= since_best
        return self.epoch == self.settings["epochs"] or out_of_patience

    @property
    def epoch_is_whole(self) -> bool:
        return self.step == len(self.loader)

    def _vote(self):
        if self.compute.world_size > 1 and self.step % VOTE_EVERY and not self.epoch_is_whole:
            return False, False
        elapsed = time.monotonic() - (self.last_save or self.started)
        due = 0 < 60 * self.settings["checkpoint_every_minutes"] < elapsed
        if self.epoch_is_whole:
            due = due or self.last_save is None or elapsed > SAVE_SECONDS
        votes = [self.stop.is_set(), due]
        if self.compute.world_size > 1:
            votes = sum_over_processes(torch.tensor(votes, dtype=torch.float, device=self.compute.device))
            return (votes > 0).tolist()
        return votes

    def end_epoch(self, learning_rate: float, val_accuracy: dict | None = None) -> None:
        """Records and describes a finished epoch, and saves it if a checkpoint is due."""
        record = {"epoch": self.epoch + 1, "lr": learning_rate} | self.meter.losses()
        record["train_accuracy"] = self.meter.accuracies(self.data.class_counts)
        if val_accuracy is not None:
            record["val_accuracy"] = val_accuracy
        record["seconds"] = round(time.monotonic() - self.begun, 3)
        self.history.append(record)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.meter = EpochMeter(len(self.data.class_counts), self.compute.device)
        is_best = val_accuracy is not None and best_epoch(self.history) == self.epoch
        if is_best:
            self.save(best=True)
        # Both at once: a run must not resume from before the epoch in best.pth.
        if is_best or self.save_due or self.stopping or self.finished:
            self.save()
        if self.compute.is_main:
            for doubt in doubts(self.history):
                say(f"warning: {doubt}", sys.stderr)
            if self.scalars is not None:
                self._try_to_write("TensorBoard's scalars", add_scalars, self.scalars, record)
            self._try_to_write("log.jsonl", write_log, self.folder, self.history)
            say(describe(record, self.settings["epochs"]))
        for line in self.loader.report():  # each process has read its own files
            say(line)

    def save(self, best: bool = False) -> None:
        """Writes latest.pth or best.pth; every process must call it."""
        meter = self.meter.state()  # summed over processes
        if self.compute.is_main:
            model, criterion, optimizer, guard = self.trained
            state = {
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
                "class_counts": self.data.class_counts,
                "class_names": self.data.class_names,
                "num_outliers": self.loader.num_outliers,
                "environment": self.environment,
                "finished": best or self.finished,
            }
            name = BEST if best else LATEST
            self._try_to_write(name, save_checkpoint, state, self.folder / name)
        if not best:
            self.last_save = time.monotonic()

    def bring_best(self, source: Path) -> None:
        """Copies best.pth from the run that is continued here, if it still is the best epoch's."""
        best = source / BEST
        if best.exists() and load_checkpoint(best)["epoch"] == best_epoch(self.history):
            self._try_to_write(BEST, shutil.copyfile, best, self.folder / BEST)

    def _try_to_write(self, what, write, *args):
        """Calls ``write``; after an error it warns, once until it succeeds again, and the run continues."""
        try:
            write(*args)
            self.unwritten.discard(what)
        except Exception as error:  # torch and matplotlib have their own for a full disk
            if what not in self.unwritten:
                say(f"warning: {what} not written: {first_line(error)}", sys.stderr)
            self.unwritten.add(what)

    def begin(self, state: dict | None) -> None:
        """Resumes the run from ``state``, or starts it, and describes it in the run directory."""
        place = None if state is None else [state["epoch"], state["step"]]
        if place != from_main(place):
            raise InputError(f"the processes see different checkpoints: is {self.folder} on a shared disk?")
        if state is not None:
            restore(state, self.trained, self.data)
            self.history, self.epoch, self.step = state["history"], state["epoch"], state["step"]
            self.seconds = state.get("seconds", 0.0)
            self.begun -= self.seconds
            if self.compute.is_main:  # its sums cover all processes
                self.meter.load_state(state["meter"])
            before = state.get("environment", {})
            self.environment = before if self.finished else resumed_in(before, self.environment)
        if not self.compute.is_main:
            return
        if self.settings.get("tensorboard"):
            self.scalars = scalar_writer(self.folder)
        counts = self.data.class_counts
        about = {"class_counts": counts, "environment": self.environment}
        about = self.settings | about | {"num_outliers": self.loader.num_outliers}
        text = json.dumps(about, indent=2, default=str) + "\n"
        self._try_to_write(ARGUMENTS, write_text, self.folder / ARGUMENTS, text)
        sizes = f"{sum(counts):,} images of {len(counts)} classes, {self.loader.num_outliers:,} outliers"
        say(f"{sizes}; {len(self.loader)} steps per epoch")
        if self.finished:
            say(f"this run is already finished: {self.epoch} of {self.settings['epochs']} epochs")

    def end(self) -> None:
        """Writes and draws the history; raises InputError if the trained network could not be saved."""
        if self.history:  # again: an earlier write may have failed
            self._try_to_write("log.jsonl", write_log, self.folder, self.history)
            picture = f"training.{self.settings['figures']}"
            self._try_to_write(picture, plot_history, self.history, self.folder / picture)
        say(f"run directory: {self.folder}")
        if LATEST in self.unwritten:
            raise InputError(f"the end of the run is not in {self.folder}: make room, then add --resume")
        if not self.finished:
            say(f"stopped in epoch {self.epoch + 1}; --resume continues from the last checkpoint", sys.stderr)
        elif BEST in self.unwritten:
            raise InputError(f"{BEST} of the best epoch could not be written to {self.folder}")
        elif self.epoch < self.settings["epochs"]:
            say(f"ended by --patience; the network of epoch {best_epoch(self.history)} is in {BEST}")


@contextmanager
def open_run(settings: dict, compute: Compute, data: TrainingData, trained: Trained) -> Iterator[Run]:
    """Takes the run directory, resumes its run if asked to, and yields the :class:`Run`. ``settings``, flags
    as plain values, are recorded, and compared with those of the run to resume.

    On the first SIGTERM or SIGINT the current step is finished and saved; the process exits with status 75.
    Raises InputError if the directory, or the run in it, is not one to write to or to resume.
    """
    folder, resume = Path(settings["srp"]), settings["resume"]
    with ExitStack() as stack:
        in_main(compute, lambda: stack.enter_context(taken_folder(folder, resume)))
        run = Run(settings, compute, data, trained, stack.enter_context(stop_request()))
        state = find_checkpoint(folder, resume, settings)
        run.begin(state)
        if state is not None and not resumes_in_place(folder, resume):
            in_main(compute, lambda: run.bring_best(run_folder(resume)))
            run.save()
        yield run
        in_main(compute, run.end)  # a launcher ends the others once one process has ended
    finish()
    if not run.finished:
        sys.exit(EXIT_STOPPED)


@contextmanager
def taken_folder(folder: Path, resume: str | None) -> Iterator[None]:
    """Makes a run directory this process's own, unless another process uses it or it holds another run."""
    with open(writable_folder(folder) / "run.lock", "w") as lock:
        try:  # unlike flock's, lockf's lock is not inherited by forked readers
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on SMB shares
            raise InputError(f"another run is using {folder}") from None
        except OSError as error:  # as on some network file systems
            say(f"warning: {folder} cannot be locked ({error}); start no second run there", sys.stderr)
        if (holds_run(folder) or (folder / "log.jsonl").exists()) and not resumes_in_place(folder, resume):
            raise InputError(f"{folder} already holds a run: --resume continues it; or choose another --srp")
        if (folder / BEST).exists() and not holds_run(folder):
            raise InputError(f"{folder} holds {BEST} alone of a run: move it away, or choose another --srp")
        for left in folder.glob("*.????????.tmp"):  # by a run that was killed while it saved
            left.unlink(missing_ok=True)
        yield


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """Yields an event that the first SIGTERM or SIGINT sets; a second one ends the process at once."""
    event, signals = threading.Event(), (signal.SIGTERM, signal.SIGINT)

    def note(number, frame):
        event.set()
        for number in signals:
            signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in signals}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
