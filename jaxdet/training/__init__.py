"""State, step, devices, schedules, loop, checkpoints, logs."""
