"""Results that readers can reproduce, with one command each: ``python -m benchmarks.NAME``.

rows: the rows of the results tables and the flags each was trained with
reproduce, table: train the rows of a table; turn result files, or any run directories, into a table
runs, records, tabulate: what they are made of: commands and run directories; result files; their tables
figures: the figures in the documents
demo: PATT beside plain cross-entropy on the embedded digits; run by ``make demo``
gpu: everything that needs CUDA, at once
speed/: speed and memory measurements
"""
