"""What makes and shows results: ``python -m benchmarks.NAME``. The commit that a result file of another
program names has that program.

rows: the rows of the results tables and the flags each was trained with
reproduce: trains and evaluates the rows of a table
table: turns result files, or any run directories, into tables
records, tabulate, notes: what result files say; a table's lines; its note
figures: the figures in the documents
demo: PATT beside plain cross-entropy on the embedded digits; run by ``make demo``
correctness: whether a device computes what the CPU computes
speed: the time of a CIFAR training step
"""
