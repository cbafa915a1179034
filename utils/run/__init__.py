"""What makes a run survive kills, full disks and bad steps.

run: one run in its directory: resuming, progress, saving, stopping
checkpoint, pickles: files that are whole or not there, and hold only tensors and plain values
guard: applies the steps that are finite, and no others
signals: SIGTERM and Ctrl-C end a run in good order
runlog, meter: the run directory with its log, and the epoch's sums
"""
