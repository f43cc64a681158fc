"""What people look at: TensorBoard, pictures, tables, results.json and the terminal."""
