"""What differs between the tasks in quantization: one module with one `QuantizationTask` for each."""
