"""What every room stands on: errors, files, records, settings, devices, progress. Imports no other room."""
