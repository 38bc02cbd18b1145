"""What a person looks at: report.py writes a run's page, charts.py draws its figures."""
