"""What a reader repeats: tables, pictures, the demo; each is one command, ``python -m benchmarks.NAME``.

rows: which rows a results table has, and with which flags each was trained
reproduce, table: trains the rows of a table; turns result files, or any run directories, into a table
figures: the documents' pictures
demo: PATT beside plain cross-entropy on the embedded digits; what ``make demo`` runs
gpu: everything that needs CUDA, in one go
speed/: what is fast, measured
"""
