"""The inequalities of U-MAE's theory (Zhang, Wang and Wang, 2022), evaluated at every checkpoint of a run."""
