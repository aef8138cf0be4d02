"""What differs between the tasks in pruning: one module with one `PruningTask` for each."""
