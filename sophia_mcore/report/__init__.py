"""The run as report.json (a contract), report.html (for people) and a summary in the terminal."""
