"""Bytes to batches.

images: sets in memory, their long tail, normalisation
registry: one record per data set that fits in memory; cifar, digits, scood: their files
imagenet, image_list, image_files, decoding: lists of image files, read and cropped by worker processes
loader: how batches are made and ordered
preprocessing: any image for a trained network
augment/: random views
prepare: prepares data sets from the command line; folders: lists, outliers and OOD sets of your own pictures
"""
