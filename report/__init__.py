"""Output for people: TensorBoard, pictures, tables, results.json and the terminal."""
