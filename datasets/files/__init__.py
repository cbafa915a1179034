"""Reading files from strangers: defences against broken and hostile ones.

checks: sizes, names and paths, before anything else is done with a file
plain_pickle: CIFAR's batches without running code from them
archives: unpacking that stays inside its folder
download: resumable downloads, verified by checksum
"""
