"""The table of the papers' claims: what each predicts, what the experiments measured, and the verdict."""
