"""Stand-in until the branch `imagenet` is merged: names of datasets/image_files.py from where they are."""

from datasets.imagenet import (  # noqa: F401
    EvalImages,
    FileTrainLoader,
    ImageFiles,
    balanced_sample,
    folder_names,
    load_files,
    load_ood_lists,
    select,
)
