"""One training run in its directory: lock, checkpoints, log, progress, and stopping cleanly."""

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from utils.checkpoint import BEST, holds_run, save_checkpoint, save_whole
from utils.console import on_terminal, say
from utils.distributed import Compute, finish, from_main, in_main, sum_over_processes
from utils.environment import environment, resumed_in
from utils.errors import InputError, first_line
from utils.history import add_scalars, best_epoch, describe, doubts, tensorboard_writer, write_log
from utils.meter import EpochMeter
from utils.plots import plot_class_counts, plot_history
from utils.resuming import ARGUMENTS, Trained, TrainingData, find_checkpoint, restore, resumes_in_place
from utils.text_files import write_text

try:
    import fcntl
except ImportError:
    sys.exit("error: Windows is not supported; use Linux or WSL (Windows Subsystem for Linux)")

LOCK = "run.lock"
EXIT_STOPPED = 75  # "try again later" (EX_TEMPFAIL): the run wrote a checkpoint and waits for --resume
VOTE_EVERY = 16  # steps between votes of several processes on stopping and saving
SAVE_SECONDS = 60  # at least, between the checkpoints of short epochs
PROGRESS_SECONDS = {True: 2, False: 30}  # between updates, on a terminal (True) or elsewhere


class Run:
    """The state of a run and its files; made by :func:`open_run`.

    Attributes:
        epoch, step: the next ones, counted from 0; between epochs ``step`` is 0.
        meter: :class:`EpochMeter` of the current epoch.
        history: one record per finished epoch, as in ``log.jsonl``.
    """

    def __init__(
        self,
        settings: dict,
        compute: Compute,
        data: TrainingData,
        trained: Trained,
        stop: threading.Event,
    ):
        self.settings, self.compute, self.data, self.trained = settings, compute, data, trained
        self.folder, self.loader, self.stop = Path(settings["srp"]), data.loader, stop
        self.num_epochs, self.save_seconds = settings["epochs"], 60 * settings["checkpoint_every_minutes"]
        self.epoch, self.step, self.history = 0, 0, []
        self.meter = EpochMeter(len(data.class_counts), compute.device)
        self.environment = environment(compute.device)
        self.stopping, self.save_due = False, False
        self.scalars = None  # TensorBoard's writer
        self.unwritten = set()  # kinds of file whose last write failed
        self.last_save, self.steps_here = None, 0
        self.seconds = 0.0  # of the current epoch, spent before this process started
        self.started = self.begun = self.last_progress = time.monotonic()  # begun: the current epoch

    def epochs(self) -> Iterator[int]:
        """Yields the numbers of the remaining epochs; ends early after a request to stop."""
        while not self.finished and not self.stopping:
            self.begun = time.monotonic() - self.seconds
            yield self.epoch

    def batches(self) -> Iterator[tuple]:
        """Yields pairs (step, Batch) for the rest of the epoch; ends early after a request to stop.

        After each step it updates the progress bar, and saves a checkpoint if one is due.
        """
        title = f"epoch {self.epoch + 1}/{self.num_epochs}"
        terminal = on_terminal()
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
                self.stopping, self.save_due = self._vote()
                if (self.stopping or self.save_due) and not self.epoch_is_whole:
                    self.trained.guard.check()
                    self.save()
                if self.stopping:
                    break

    @property
    def finished(self) -> bool:
        """Tells whether nothing is left to train: every epoch is, or --patience has run out."""
        since_best = self.epoch - best_epoch(self.history)
        return self.epoch == self.num_epochs or 0 < self.settings.get("patience", 0) <= since_best

    @property
    def epoch_is_whole(self) -> bool:
        """Tells whether every step of the epoch has been made."""
        return self.step == len(self.loader)

    def _vote(self):
        """Returns (whether to stop, whether a checkpoint is due), the same in all processes."""
        if self.compute.world_size > 1 and self.step % VOTE_EVERY and not self.epoch_is_whole:
            return False, False
        elapsed = time.monotonic() - (self.last_save or self.started)
        due = 0 < self.save_seconds < elapsed
        if self.epoch_is_whole:
            due = due or self.last_save is None or elapsed > SAVE_SECONDS
        votes = torch.tensor([float(self.stop.is_set()), float(due)])
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
        """Records a finished epoch, prints a line about it, and saves it if a checkpoint is due."""
        record = {"epoch": self.epoch + 1, "lr": learning_rate} | self.meter.losses()
        record["train_accuracy"] = self.meter.accuracies(self.data.class_counts)
        if val_accuracy is not None:
            record["val_accuracy"] = val_accuracy
        record["seconds"] = round(time.monotonic() - self.begun, 3)
        self.history.append(record)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.meter = EpochMeter(len(self.data.class_counts), self.compute.device)
        if val_accuracy is not None and best_epoch(self.history) == self.epoch:
            self.save(best=True)
        if self.save_due or self.stopping or self.finished:
            self.save()
        if self.compute.is_main:
            for warning in doubts(self.history):
                say(f"warning: {warning}", sys.stderr)
            if self.scalars is not None:
                self._try_to_write("TensorBoard's scalars", add_scalars, self.scalars, record)
            self._try_to_write("the log", write_log, self.folder, self.history)
            say(describe(record, self.num_epochs))
        for line in self.loader.report():  # each process has read its own files
            say(line)

    def save(self, best: bool = False) -> None:
        """Writes a checkpoint, latest.pth or best.pth; every process must call it."""
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
            if best:
                self._try_to_write(BEST, save_whole, state, self.folder / BEST)
                return
            self._try_to_write("the checkpoint", save_checkpoint, state, self.folder)
        self.last_save = time.monotonic()

    def _try_to_write(self, what, write, *args):
        """Calls ``write``; after an error it warns, once until it succeeds again, and the run continues."""
        try:
            if not self.folder.is_dir():  # deleted meanwhile
                self.folder.mkdir(parents=True)
                say(f"warning: {self.folder} was deleted; it is written again", sys.stderr)
                self._write_arguments()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.folder} was deleted and cannot be made again: {reason}") from None
        try:
            write(*args)
            self.unwritten.discard(what)
        except Exception as error:  # torch and matplotlib have their own for a full disk
            if what not in self.unwritten:
                say(f"warning: {what} not written: {first_line(error)}", sys.stderr)
            self.unwritten.add(what)

    def _write_arguments(self):
        about = {"class_counts": self.data.class_counts, "environment": self.environment}
        about = self.settings | about | {"num_outliers": self.loader.num_outliers}
        text = json.dumps(about, indent=2, default=str) + "\n"
        self._try_to_write(ARGUMENTS, write_text, self.folder / ARGUMENTS, text)

    def _draw(self, name, plot, values):
        picture = f"{name}.{self.settings['figures']}"
        self._try_to_write(picture, plot, values, self.folder / picture)

    def begin(self, state: dict | None) -> None:
        """Resumes the run from ``state``, or starts it, and describes it in the run directory.

        Raises:
            InputError: the processes found different checkpoints, or ``state`` does not fit.
        """
        place = None if state is None else [state["epoch"], state["step"]]
        disagrees = float(place != from_main(place))
        if sum_over_processes(torch.tensor([disagrees], device=self.compute.device)).item():
            raise InputError(
                f"the processes see different checkpoints in {self.folder}; it has to be on a disk that all "
                "share"
            )
        if state is not None:
            restore(state, self.trained, self.data)
            self.history, self.epoch, self.step = state["history"], state["epoch"], state["step"]
            self.seconds = state.get("seconds", 0.0)
            self.begun = time.monotonic() - self.seconds
            if self.compute.is_main:  # its sums cover all processes
                self.meter.load_state(state["meter"])
            before = state.get("environment")
            before = before if isinstance(before, dict) else self.environment
            self.environment = before if self.finished else resumed_in(before, self.environment)
        if not self.compute.is_main:
            return
        if self.settings.get("tensorboard"):
            self.scalars = tensorboard_writer(self.folder)
        self._write_arguments()
        counts = self.data.class_counts
        self._draw("class_counts", plot_class_counts, counts)
        say(
            f"{len(counts)} classes, {sum(counts):,} images, {len(self.loader)} steps per epoch; "
            f"{self.loader.where()}"
        )
        if self.finished:
            say(f"this run is already finished: {self.epoch} of {self.num_epochs} epochs")

    def end(self) -> None:
        """Writes and draws the history, and says where the run is; for the main process.

        Raises:
            InputError: the trained network could not be saved.
        """
        if self.history:  # again: an earlier write may have failed
            self._try_to_write("the log", write_log, self.folder, self.history)
        self._draw("training", plot_history, self.history)
        say(f"run directory: {self.folder}")
        saved = "the checkpoint" not in self.unwritten
        if self.finished and not saved:
            raise InputError(
                f"the last checkpoint in {self.folder} is older than the run's end: see the warning "
                "above, then repeat the missing part with --resume"
            )
        if self.finished and self.epoch < self.num_epochs:
            best = best_epoch(self.history)
            say(f"ended by --patience: held-out accuracy is highest after epoch {best}, in {BEST}")
        if not self.finished:
            where = "there" if saved else "the last checkpoint that could be written"
            say(
                f"stopped in epoch {self.epoch + 1} of {self.num_epochs}; --resume continues from {where}",
                sys.stderr,
            )


@contextmanager
def open_run(settings: dict, compute: Compute, data: TrainingData, trained: Trained) -> Iterator[Run]:
    """Takes the run directory, resumes its run if asked to, and yields the :class:`Run`.

    On the first SIGTERM or SIGINT the current step is finished and saved; the process exits with status 75.

    Args:
        settings: the flags as plain values, with ``srp``, ``epochs``, ``resume``,
            ``checkpoint_every_minutes`` and ``figures``. They are recorded, and compared with those of the
            run to resume.

    Raises:
        InputError: the directory is in use, cannot be written, or holds a run that is not the one to resume;
            the checkpoint is damaged or from another run; the trained network could not be saved.
    """
    folder, resume = Path(settings["srp"]), settings["resume"]
    with ExitStack() as stack:
        in_main(compute, lambda: stack.enter_context(taken_folder(folder, resume)))
        stop = stack.enter_context(stop_request())
        run = Run(settings, compute, data, trained, stop)
        state = find_checkpoint(folder, resume, settings)
        run.begin(state)
        if state is not None and not resumes_in_place(folder, resume):
            run.save()
        yield run
        in_main(compute, run.end)  # a launcher ends the others once one process has ended
    if not run.finished:
        finish()
        sys.exit(EXIT_STOPPED)


@contextmanager
def taken_folder(folder: Path, resume: str | None) -> Iterator[None]:
    """Makes a run directory this process's own; the kernel releases that of a dead process.

    Without file locks, as on some network file systems, the run continues unlocked, with a warning.

    Raises:
        InputError: the folder cannot be written, another process is using it, or it holds another run than
            the one to resume.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "ab+", buffering=0)
    except OSError as error:
        raise InputError(f"the output folder {folder} cannot be written: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.lockf(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # unlike flock's, not inherited by forked readers
        except (BlockingIOError, PermissionError):  # the latter on SMB shares
            lock.seek(0)
            owner = lock.read(99).decode(errors="replace").strip()
            raise InputError(f"another run (process {owner}) is using {folder}") from None
        except OSError as error:
            reason = error.strerror or error
            say(f"warning: {folder} cannot be locked ({reason}); start no second run there", sys.stderr)
        if (holds_run(folder) or (folder / "log.jsonl").exists()) and not resumes_in_place(folder, resume):
            advice = "add --resume to continue it, or choose another --srp"
            if resume:
                advice = f"--resume {resume} needs another --srp"
            raise InputError(f"{folder} already holds a run; {advice}")
        for left in folder.glob("*.pth.*.tmp"):  # by a run that was killed while it saved
            left.unlink(missing_ok=True)
        with suppress(OSError):  # on a full disk the lock holds without the owner's name
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {platform.node()}\n".encode())
        yield


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """Yields an event that the first SIGTERM or SIGINT sets; a second one ends the process at once.

    Outside the main thread, where Python admits no handlers, signals keep their usual effect.
    """
    event, previous = threading.Event(), {}

    def note(number, frame):
        if event.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        event.set()

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
