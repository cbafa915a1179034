"""What makes a run survive kills, full disks and bad steps.

checkpoint, pickles: files that are whole or not there, and hold only tensors and plain values
weights: finds, names and loads the network's weights in a checkpoint
guard: applies the steps that are finite
signals: SIGTERM and Ctrl-C end a run in good order
runlog, meter: the run directory, its log, and the epoch's sums
"""
