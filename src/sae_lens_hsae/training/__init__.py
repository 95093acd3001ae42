"""What SAELens' trainer, runner and activation store lack: checkpoints, exact resuming, watching."""
