"""Everything computed from network outputs, and everything the scripts share.

losses, vmf: the training objective and its directional statistics
calibration, probe, scores, fitting: what is fitted on the features of a trained network
evaluation, metrics, report, plots, conclusion: from features to results
detector, predictions: a trained network in use
flags, errors, console, text_files, environment, distributed: what the scripts share
run, resuming, checkpoint: a run in its directory, which survives kills and full disks
guard, meter: applies finite steps only, and sums up an epoch
"""
