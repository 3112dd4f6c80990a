"""The steps. Each runs on SQLite and PostgreSQL alike, in one transaction with the others that are due."""
