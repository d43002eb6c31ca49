"""What every other part stands on: errors, files, seeds, progress. Imports nothing of mixshow."""
