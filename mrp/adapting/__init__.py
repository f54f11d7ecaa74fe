"""Going on from weights that exist, on images of one's own: a recipe by simple rules, which images it holds out.

Nothing here trains. The recipe is an ordinary file, which `mrp pretrain` takes, and the verdict is what the evaluators
of `mrp judge` say of the weights before and after.
"""

PLAN, LIST, RESULT = "adapt.yaml", "held-out.json", "adapt.json"  # files of the folder
BEFORE, AFTER = "before", "after"  # its runs: the weights where they were imported, and what is trained
