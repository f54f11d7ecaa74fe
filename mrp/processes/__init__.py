"""The processes of a run and the machine they run on."""
