"""Everything computed from network outputs, and everything the scripts share.

losses, vmf: the training objective and its directional statistics
calibration, probe, scores, fitting: what is fitted on the features of a trained network
evaluation, metrics, plots, results: from features to tables and files
evaluation_script: the command line of both test scripts
detector: a trained network in use
flags, errors, text_files, distributed: what the scripts share
run, history, checkpoint: a run in its directory, which survives kills and full disks
weights: a network's weights in any checkpoint, and networks that start from them
guard: applies finite steps only

detector and evaluation_script use datasets; datasets uses errors, flags and text_files alone.
"""
