"""Weight files of other programs: identification, and conversion to this network's names."""
