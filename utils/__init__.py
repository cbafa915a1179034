"""What is computed from network outputs, and what the scripts share.

losses, vmf: the training objective and its directional statistics
calibration, evaluation, metrics, report, plots: from features to scores, tables and pictures
flags, errors, distributed: the command line, messages to the user, devices and processes
run/: what makes a run survive kills, full disks and bad steps
"""
