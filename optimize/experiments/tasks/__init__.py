"""What differs between the tasks in a comparison: one module with one `ComparisonTask` for each."""
