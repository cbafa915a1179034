"""Makes runs survive kills, full disks and bad steps.

run: one run in its directory: resuming, progress, saving, stopping
checkpoint, pickles: files that are whole or absent, and hold only tensors and plain values
guard: applies finite steps only
signals: SIGTERM and Ctrl-C end a run cleanly
runlog, meter: the run directory with its log, and the sums of an epoch
"""
