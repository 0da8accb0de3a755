# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
Proof that a change of the code changes no result: `make same BASE=<commit>`.

One matrix of tiny runs is trained with the package of `BASE` and with the package of the working tree, on one process
and on two. Every rank writes a record of each run: hashes of weights, batches and files, and logs, metrics and cards
as they are. Two records of a run are the same bit by bit, or the command lists what differs and fails.

The files of this folder are taken from the working tree for both packages. They import nothing from other tests and
only public names of `jest_hf`, so that both packages can run them.

    tiny         models, processors and rows
    matrix       the runs, by name
    recorded     a run with all of its results written down
    runner       what a process does: all runs, one after the other
    mutations    trainers that do something in another order, which the records must show
    trees        the two packages in a temporary folder, and processes that import one of them
    comparison   what differs between two sets of records
"""
