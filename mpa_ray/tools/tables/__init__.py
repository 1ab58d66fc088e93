"""The paper's tables, made again: grids of runs, and our figures beside the paper's."""
