"""The claims of the two founding papers as experiments: each has a command, a prediction, a measurement and a plot."""
