"""The work of `mrp import` and `mrp export`: a run from weights of another project, and a folder for one from a run."""
