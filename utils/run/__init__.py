"""Makes runs survive kills, full disks and bad steps.

run: one run in its directory: resuming, progress, saving, stopping
directory, meter: the run directory with its log, and the sums of an epoch
checkpoint, pickles: files that are whole or absent, and hold only tensors and plain values
weights, stored: what is in a checkpoint: a network, of this project or not, and the flags of its run
guard: applies finite steps only
signals: SIGTERM and Ctrl-C end a run cleanly
"""
