"""Weight files of others: what they are, and their weights under the names of this network."""
