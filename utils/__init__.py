"""Everything computed from network outputs, and everything the scripts share.

losses, vmf: the training objective and its directional statistics
calibration, evaluation, metrics, report, plots: from features to scores, tables and plots
flags, errors, distributed: the command line, messages to the user, devices and processes
run/: makes runs survive kills, full disks and bad steps
"""
