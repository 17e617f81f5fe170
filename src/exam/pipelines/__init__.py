"""The bodies of the commands: the stages that run, in order."""
