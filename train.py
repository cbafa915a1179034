"""Trains PATT on long-tailed CIFAR-10, CIFAR-100 or the embedded digits.

python train.py --ds digits --gpu cpu --srp runs/digits              no download, a minute
python train.py --gpu 0 --ds cifar10 --drp DATA --srp OUT
python train.py --gpu 0,1 ...                                        two GPUs in one process (DataParallel)
torchrun --nproc_per_node=4 train.py ...                             one process per GPU (DDP)
python train.py ... --resume                                         goes on where the run in --srp stopped
"""
# Reads from top to bottom as the method: the training step, the run around it, the data and network, the
# flags.

import argparse
import math
import os
import reprlib
import sys
import time
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from datasets.loader import TrainLoader, evaluation_batches
from datasets.normalization import IMAGENET_NORMALIZATION
from datasets.registry import (
    DATASETS,
    NORMALIZATION,
    hold_out,
    load_long_tailed,
    load_surrogate_outliers,
    views_for,
)
from models import FAMILIES, build_model
from utils import flags
from utils.distributed import (
    autocast,
    finish,
    from_main,
    in_main,
    parallelize,
    share_buffers,
    start,
    sum_over_processes,
)
from utils.errors import InputError, exit_cleanly, first_line
from utils.losses import PATTLoss
from utils.plots import plot_class_counts, plot_history
from utils.run.checkpoint import (
    LATEST,
    PREVIOUS,
    differs,
    load_checkpoint,
    load_optimizer,
    load_run,
    load_weights,
    network_weights,
    require_class_counts,
    save_checkpoint,
)
from utils.run.guard import StepGuard
from utils.run.meter import EpochMeter
from utils.run.runlog import Attempts, RunDirectory, environment, say, show_warnings_plainly
from utils.run.signals import EXIT_STOPPED, StopRequest

# The points in which the authors' release trains otherwise than the paper describes; docs/departures.md has
# the whole table.
RELEASED_CHOICES = {
    "embeddings": "ISAC's embeddings are not normalised to the sphere",
    "statistics": "one running average of the class statistics over the whole run",
    "normalization": "outliers are normalised with ImageNet's mean and std",
    "crop": "view 1's crop has no padding",
}


def train_one_epoch(network, criterion, optimizer, guard, meter, batches, mixed_precision, after_step):
    """One pass over ``batches``, pairs of (step number, Batch); ends early where ``after_step(step)`` asks
    for it."""
    network.train()
    criterion.train()
    guard.remember()
    for step, batch in batches:
        with mixed_precision:
            output = network(batch.images)  # views 1, 2, 3 and outliers share BatchNorm's statistics
        terms = criterion(output.logits, output.embedding, batch.labels)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        applied = guard.step(terms, batch.indices, step)
        meter.add(terms, output.logits[: len(batch.labels)], batch.labels, applied)
        if after_step(step + 1):
            break
    guard.check()


@torch.inference_mode()
def accuracy(network, batches, class_counts, device, mixed_precision):
    """Accuracies ``{all, many, medium, few}`` over batches of (images, labels)."""
    network.eval()
    meter = EpochMeter(len(class_counts), device)
    for images, labels in batches:
        with mixed_precision:
            logits = network(images).logits
        meter.add_answers(logits, labels)
    return meter.accuracies(class_counts)


def run(args, compute, loader, model, criterion, class_counts, learning_rate, validation_batches=None):
    """Trains ``model`` and keeps the run directory ``args.srp``.

    Args:
        loader: gives ``epoch(epoch, start_step)``, an iterator of Batch, and its length in steps.
        learning_rate: epoch -> learning rate.
        validation_batches: () -> iterator of (images, labels) of held-out training images, or None for no
            validation.
    """
    with run_directory(args, compute) as out, StopRequest() as stop:
        model.to(compute.device, memory_format=torch.channels_last)
        criterion.to(compute.device)
        optimizer = build_optimizer(model, args)
        state = find_checkpoint(args, compute)
        guard = StepGuard(optimizer, [model, criterion], args.max_bad_steps)
        history, epoch, step, meter_state, seconds = [], 0, 0, None, 0.0
        require_same_place(state, args, compute)
        if state is not None:
            restore(state, model, criterion, optimizer, guard, class_counts, loader.num_outliers, len(loader))
            history, epoch, step = state["history"], state["epoch"], state["step"]
            meter_state, seconds = state["meter"], state.get("seconds", 0.0)

        network = parallelize(
            model, compute, args.precision, sync_bn=args.sync_bn, all_parameters_used=args.isac
        )
        if args.compile:
            network = torch.compile(network)
        mixed_precision = autocast(compute.device, args.precision)
        attempt, steps = Attempts(), len(loader)

        def checkpoint(epoch, step, meter):
            meter_state = meter.state()  # summed over processes, so every process comes here
            if not compute.is_main:
                return
            state = {
                "model": model.state_dict(),
                "criterion": criterion.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "meter": meter_state,
                "epoch": epoch,
                "step": step,
                "history": history,
                "seconds": time.monotonic() - begun if step else 0.0,
                "bad_in_row": guard.bad_in_row,
                "args": plain(args),
                "class_counts": class_counts,
                "num_outliers": loader.num_outliers,
                "environment": environment(compute.device),
            }
            attempt("the checkpoint", save_checkpoint, state, out.folder)

        if compute.is_main:
            settings = plain(args) | {
                "class_counts": class_counts,
                "environment": environment(compute.device),
            }
            settings["num_outliers"] = loader.num_outliers
            attempt("args.json", out.write_json, "args.json", settings)
            attempt("class_counts.png", plot_class_counts, class_counts, out.folder / "class_counts.png")
            say(
                f"{len(class_counts)} classes, {sum(class_counts):,} images, {steps} steps an "
                f"epoch; {loader.where()}"
            )

        last_save = time.monotonic()
        while epoch < args.epochs:
            rate = learning_rate(epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            meter = EpochMeter(len(class_counts), compute.device)
            if step == 0:
                criterion.start_epoch()
            elif compute.is_main:
                meter.load_state(meter_state)
            begun = time.monotonic() - seconds
            stopping, position = False, step

            def after_step(done, epoch=epoch, meter=meter):
                """Checkpoints where it is time to, and says whether to stop; all processes decide alike."""
                nonlocal last_save, stopping, position
                position = done
                if compute.world_size > 1 and done % 16 and done < steps:
                    return False
                due = 0 < args.checkpoint_every_minutes * 60 < time.monotonic() - last_save
                wishes = torch.tensor([float(stop.requested), float(due)])
                if compute.world_size > 1:
                    wishes = sum_over_processes(wishes.to(compute.device)).cpu()
                stopping, due = (wishes > 0).tolist()
                if (stopping or due) and done < steps:
                    guard.check()
                    checkpoint(epoch, done, meter)
                    last_save = time.monotonic()
                return stopping

            bar = tqdm(
                total=steps,
                initial=step,
                desc=f"epoch {epoch + 1}/{args.epochs}",
                leave=False,
                disable=quiet(compute),
            )
            batches = counted(loader.epoch(epoch, step), step, bar)
            train_one_epoch(network, criterion, optimizer, guard, meter, batches, mixed_precision, after_step)
            bar.close()
            if position < steps:
                break
            record = (
                {"epoch": epoch + 1, "lr": rate}
                | meter.losses()
                | {"train_accuracy": meter.accuracies(class_counts)}
            )
            if validation_batches is not None:
                share_buffers(model)
                record["val_accuracy"] = accuracy(
                    model, validation_batches(), class_counts, compute.device, mixed_precision
                )
            record["seconds"] = round(time.monotonic() - begun, 3)
            history.append(record)
            epoch, step, seconds = epoch + 1, 0, 0.0
            checkpoint(epoch, 0, EpochMeter(len(class_counts), compute.device))
            last_save = time.monotonic()
            if compute.is_main:
                attempt("log.jsonl", out.write_log, history)
                for line in (describe(record, args.epochs), *loader.report()):
                    say(line)
            if stopping:
                break
        if compute.is_main:
            attempt("training.png", plot_history, history, out.folder / "training.png")
            say(f"run directory: {out.folder}")
    if epoch < args.epochs:
        if compute.is_main:
            where = (
                "the last checkpoint that could be written" if attempt.failing("the checkpoint") else "there"
            )
            say(f"stopped in epoch {epoch + 1} of {args.epochs}; --resume goes on from {where}", sys.stderr)
        finish()
        sys.exit(EXIT_STOPPED)


@contextmanager
def run_directory(args, compute):
    """The main process's :class:`RunDirectory`, None in the others; where it is refused, every process ends.

    Raises:
        InputError: the folder is in use, cannot be written, or holds a run that is not the one to resume.
    """

    def take():
        with ExitStack() as stack:
            out = stack.enter_context(closing(RunDirectory(args.srp)))
            source = Path(args.resume or args.srp).resolve()
            goes_on = args.resume is not None and out.folder.resolve() in (source, source.parent)
            if holds_run(out.folder) and not goes_on:
                raise InputError(
                    f"{args.srp} already holds a run; add --resume to go on with it, or choose another --srp"
                )
            stack.pop_all()
        return out

    out = in_main(compute, take)
    with nullcontext() if out is None else closing(out):
        yield out


def holds_run(folder):
    """Whether there is a checkpoint; a crash between the two renames of a save leaves the previous one
    alone."""
    return (folder / LATEST).exists() or (folder / PREVIOUS).exists()


def find_checkpoint(args, compute):
    """The state to go on from, or None; refuses one whose arguments differ where that changes the run."""
    if args.resume is None:
        return None
    source = Path(args.resume or args.srp)
    if source.is_file():
        state = load_checkpoint(source)
    elif holds_run(source) or args.resume:
        state = load_run(source)
    else:
        if compute.is_main:
            say(f"no checkpoint in {source} yet: starting from the beginning")
        return None
    counts = isinstance(state, dict) and type(state.get("epoch")) is type(state.get("step")) is int
    if not counts or not isinstance(state.get("args"), dict) or not isinstance(state.get("optimizer"), dict):
        raise InputError(
            f"{source} is no checkpoint of train.py or train_imagenet.py, and cannot be gone on from"
        )
    free = {
        "resume",
        "gpu",
        "num_workers",
        "srp",
        "tb",
        "checkpoint_every_minutes",
        "max_bad_steps",
        "compile",
    }
    free |= {
        "drp",
        "txtt",
        "txtv",
        "iidp",
        "iodp",
        "txt_ood_train",
        "txt_ood_test",
    }  # data may move; see restore
    for name, value in plain(args).items():
        if name not in free and name in state["args"] and differs(state["args"][name], value):
            raise InputError(
                f"--{name} is {value}, but the run to resume has {reprlib.repr(state['args'][name])}"
            )
    return state


def require_same_place(state, args, compute):
    """Raises InputError where the processes found different checkpoints, or not all found one."""
    place = None if state is None else [state["epoch"], state["step"]]
    disagrees = float(place != from_main(place))
    if sum_over_processes(torch.tensor([disagrees], device=compute.device)).item():
        raise InputError(
            f"the processes see different checkpoints in {args.srp}; it has to be on a disk that all share"
        )


def restore(state, model, criterion, optimizer, guard, class_counts, num_outliers, steps):
    """Makes everything what it was when ``state`` was saved.

    Raises:
        InputError: it is of other training images or outliers, or holds what a run cannot go on from.
    """
    require_class_counts(state, class_counts)
    if differs(state.get("num_outliers"), num_outliers):
        raise InputError(f"the outliers are not those of the run to resume: there are {num_outliers:,}")
    try:
        load_weights(model, network_weights(state))
        criterion.load_state_dict(state["criterion"])
        load_optimizer(optimizer, state["optimizer"])
        torch.set_rng_state(state["rng"])
        guard.bad_in_row = int(state.get("bad_in_row", 0))
        EpochMeter(len(class_counts), "cpu").load_state(state["meter"])
        places = state["epoch"] >= 0 and 0 <= state["step"] < steps and state.get("seconds", 0.0) >= 0
        if not places or not isinstance(state["history"], list):
            raise ValueError("its history or its position is none of such a run")
    except InputError:
        raise
    except Exception as error:  # a stranger's values, in whatever they come to
        raise InputError(f"the checkpoint cannot be gone on from: {first_line(error)}") from error


def build_optimizer(model, args):
    """The fused forms, which can skip a step on the device."""
    if args.opt == "adam":
        return torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.wd, fused=True)
    return torch.optim.SGD(
        model.parameters(),
        lr=args.lr,
        momentum=args.momentum,
        nesterov=args.momentum > 0,
        weight_decay=args.wd,
        fused=True,
    )


def cosine(base, epochs):
    """The cosine schedule from ``base`` to 0, per epoch."""
    return lambda epoch: base / 2 * (1 + math.cos(math.pi * epoch / epochs))


def plain(args):
    """The namespace as plain values, for JSON and checkpoints."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def quiet(compute):
    return not compute.is_main or not sys.stderr.isatty()


def counted(batches, first, bar):
    """Numbers the batches from ``first`` and moves the bar."""
    for step, batch in enumerate(batches, start=first):
        yield step, batch
        bar.update()


def describe(record, epochs):
    """One line about an epoch."""
    kind = "val" if "val_accuracy" in record else "train"
    shots = record[f"{kind}_accuracy"]
    accuracies = " ".join(f"{name} {100 * value:.2f}" for name, value in shots.items() if value is not None)
    terms = " ".join(f"{name} {record[name]:.4f}" for name in ("loss", "isac", "tla", "oe"))
    head = f"epoch {record['epoch']}/{epochs}: {terms}"
    return f"{head} | {kind} accuracy %: {accuracies} | {record['seconds']:.1f} s"


def build_criterion(args, class_counts, embedding_dim):
    """The loss that the flags describe."""
    return PATTLoss(
        class_counts,
        embedding_dim,
        oe_weight=args.Lambda1,
        tla_weight=args.Lambda2,
        contrast_temperature=args.temperature,
        logit_temperature=args.tem_scale,
        schedule="running" if "statistics" in args.depart else "epoch",
        normalize="embeddings" not in args.depart,
        isac=args.isac,
        tla=args.tla,
        oe=args.oe,
    )


def check_flags(args, compute, num_images, num_outliers):
    """Refuses batch sizes that the sets or the processes cannot give, and flags that do not go with the
    devices.

    ``num_outliers`` is None where none are used.
    """
    if args.sync_bn and (compute.world_size == 1 or compute.device.type != "cuda"):
        raise InputError("--sync_bn is for several processes (torchrun) on CUDA")
    if args.compile and len(compute.gpus) > 1:
        raise InputError("--compile goes with one GPU a process: name one in --gpu, or use torchrun")
    sizes = [("--batch_size", args.batch_size, num_images)]
    sizes += [] if num_outliers is None else [("--ood_batch_size", args.ob, num_outliers)]
    for flag, size, available in sizes:
        if size > available:
            raise InputError(f"{flag} {size} is larger than the set, which has {available} images")
        if size % compute.world_size:
            raise InputError(f"{flag} {size} cannot be shared by {compute.world_size} processes")


def main(argv=None):
    args = parse_args(argv)
    show_warnings_plainly()
    compute = start(args.gpu)
    seed_everything(args.seed, args.deterministic)

    train = load_long_tailed(args.ds, args.drp, args.rho)
    validation = None
    if args.val_fraction > 0:
        kept, held = hold_out(train.labels, args.val_fraction)
        train, validation = (
            train._replace(images=train.images[kept], labels=train.labels[kept]),
            (train.images[held], train.labels[held]),
        )
    class_counts = torch.bincount(train.labels).tolist()
    outliers = load_surrogate_outliers(args.ds, args.drp, args.num_ood_samples) if args.oe else None
    check_flags(args, compute, len(train.labels), None if outliers is None else len(outliers))
    normalization = NORMALIZATION[args.ds]
    loader = TrainLoader(
        train.images,
        train.labels,
        outliers,
        views_for(args.ds, pad_crop="crop" not in args.depart),
        batch_size=args.batch_size,
        outlier_batch_size=args.ob,
        normalization=normalization,
        outlier_normalization=IMAGENET_NORMALIZATION if "normalization" in args.depart else normalization,
        contrastive=args.isac,
        seed=args.seed,
        device=compute.device,
        rank=compute.rank,
        world_size=compute.world_size,
    )

    def validation_batches():
        mine = slice(compute.rank, None, compute.world_size)
        images, labels = validation[0][mine], validation[1][mine]
        return evaluation_batches(
            images, labels, batch_size=args.tb, normalization=normalization, device=compute.device
        )

    model = build_model(args.model, len(class_counts))
    criterion = build_criterion(args, class_counts, model.embedding_dim)
    run(
        args,
        compute,
        loader,
        model,
        criterion,
        class_counts,
        cosine(args.lr, args.epochs),
        validation_batches if validation else None,
    )
    finish()


def seed_everything(seed, deterministic):
    """Seeds initialisation (data order and views have their own seeds); optionally admits deterministic
    kernels only."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    else:
        torch.backends.cudnn.benchmark = True


def add_training_flags(parser):
    """Adds the flags that train.py and train_imagenet.py share; returns the group about optimisation, for
    one's own."""
    run_group = parser.add_argument_group("run")
    run_group.add_argument(
        "--seed", type=flags.seed, default=3407, help="of initialisation, data order and views"
    )
    flags.add_boolean(
        run_group,
        "--replay",
        "--deterministic",
        dest="deterministic",
        default=False,
        help="admit deterministic kernels only, so that a run on the same GPU can be replayed "
        "exactly (on a CPU it always can)",
    )
    run_group.add_argument("--gpu", default="0", help="CUDA indices such as 0 or 0,1 (DataParallel), or cpu")
    run_group.add_argument(
        "--num_workers", "--cpus", type=flags.count, default=4, help="processes that read ImageNet's files"
    )
    run_group.add_argument(
        "--save_root_path",
        "--srp",
        dest="srp",
        type=Path,
        help="the run directory; default runs/DATASET_MODEL_SEED",
    )
    run_group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help="go on from the run in --srp, or from another run directory or checkpoint file",
    )
    run_group.add_argument(
        "--checkpoint_every_minutes",
        type=flags.weight,
        default=0,
        help="also within epochs; 0: at their ends",
    )
    run_group.add_argument(
        "--max_bad_steps",
        type=flags.positive_int,
        default=3,
        help="non-finite steps in a row that end the run",
    )
    run_group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 on CUDA, fp32 on a CPU; fp32 on CUDA has TF32 convolutions",
    )
    run_group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the network"
    )
    flags.add_boolean(
        run_group,
        "--sync_bn",
        default=False,
        help="BatchNorm statistics of the global batch (CUDA, torchrun)",
    )

    method = parser.add_argument_group("method")
    method.add_argument("--Lambda1", type=flags.weight, help="weight of the outlier-exposure term")
    method.add_argument("--Lambda2", type=flags.weight, help="weight of the logit-adjustment term")
    method.add_argument("--temperature", type=flags.positive, default=0.1, help="tau of the contrastive term")
    method.add_argument("--tem_scale", type=flags.positive, help="T of the logit adjustment")
    method.add_argument(
        "--recipe",
        choices=("paper", "released"),
        default="paper",
        help="released: depart from the paper as the authors' release does",
    )
    method.add_argument(
        "--depart",
        nargs="+",
        choices=tuple(RELEASED_CHOICES),
        default=[],
        metavar="POINT",
        help="depart as the release does in these points alone: "
        + "; ".join(f"{k}: {v}" for k, v in RELEASED_CHOICES.items()),
    )
    flags.add_boolean(
        method, "--isac", default=True, help="the contrastive term; without it --Lambda2 counts as 1"
    )
    flags.add_boolean(
        method, "--tla", default=True, help="the logit adjustment; without it plain cross-entropy"
    )
    flags.add_boolean(method, "--oe", default=True, help="outlier exposure; without it no outliers are read")

    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument(
        "--val_fraction",
        type=flags.fraction,
        default=0,
        help="share of each class held out of training to monitor",
    )
    optimisation.add_argument(
        "--epochs", "-e", type=flags.positive_int, help="passes over the training images"
    )
    optimisation.add_argument(
        "--batch_size", "-b", type=flags.positive_int, help="ID images a step, each in three views; global"
    )
    optimisation.add_argument(
        "--ood_batch_size", "--ob", dest="ob", type=flags.positive_int, help="outliers a step; global"
    )
    optimisation.add_argument(
        "--test_batch_size",
        "--tb",
        dest="tb",
        type=flags.positive_int,
        default=1000,
        help="validation images at once",
    )
    optimisation.add_argument("--opt", choices=("adam", "sgd"), help="the optimiser")
    optimisation.add_argument("--lr", type=flags.positive, help="the first epoch's learning rate")
    optimisation.add_argument("--wd", type=flags.weight, help="weight decay")
    optimisation.add_argument("--momentum", "-m", type=flags.unit, default=0.9, help="of SGD (Nesterov)")
    optimisation.add_argument("--num_ood_samples", type=flags.positive_int, help="the first so many outliers")
    return optimisation


CIFAR_DEFAULTS = dict(
    model="ResNet18",
    rho=0.01,
    epochs=100,
    batch_size=128,
    ob=256,
    opt="adam",
    lr=1e-3,
    wd=5e-4,
    Lambda1=0.1,
    Lambda2=0.5,
    tem_scale=0.9,
    num_ood_samples=300_000,
)
DEFAULTS = {
    "cifar10": CIFAR_DEFAULTS,
    "cifar100": CIFAR_DEFAULTS,
    "digits": CIFAR_DEFAULTS | dict(model="ResNet20", rho=0.1, epochs=30, batch_size=32, ob=64),
}


def parse_args(argv=None):
    """The flags; defaults are the paper's run on the data set of ``--ds``."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    data = parser.add_argument_group("data and network")
    data.add_argument(
        "--dataset", "--ds", dest="ds", choices=DATASETS, default="cifar10", help="the data set"
    )
    data.add_argument(
        "--data_root_path", "--drp", dest="drp", type=Path, default=Path("data"), help="the data folder"
    )
    data.add_argument("--model", "--md", choices=tuple(FAMILIES["cifar"]), help="the network")
    data.add_argument(
        "--imbalance_ratio",
        "--rho",
        dest="rho",
        type=flags.imbalance_ratio,
        help="smallest class / largest class",
    )
    add_training_flags(parser)
    asked = [
        word for word in argv if word not in ("-h", "--help")
    ]  # help is to show this data set's defaults
    parser.set_defaults(**DEFAULTS[parser.parse_known_args(asked)[0].ds])
    return resolve(parser.parse_args(argv))


def resolve(args, points=tuple(RELEASED_CHOICES)):
    """Fills in what follows from other flags: ``--recipe released`` is every departure of ``points``
    together.

    Raises:
        InputError: ``--depart`` names a point outside ``points``, those that make a difference on the data
            set.
    """
    pointless = set(args.depart) - set(points)
    if pointless:
        raise InputError(f"--depart {min(pointless)} makes no difference on {args.ds}")
    args.depart = sorted(points if args.recipe == "released" else set(args.depart))
    args.srp = args.srp or Path("runs") / f"{args.ds}_{args.model}_{args.seed}"
    return args


if __name__ == "__main__":
    exit_cleanly(main)
