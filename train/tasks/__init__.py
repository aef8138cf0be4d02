"""What differs between the tasks in training: one module with one `Task` for each."""
