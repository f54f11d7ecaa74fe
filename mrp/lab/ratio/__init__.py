"""The best mask ratio of MAE, predicted from a masked classifier before MAE is trained, and then held against MAE."""
