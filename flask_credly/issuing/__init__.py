"""Brings the ledger and Credly together: the notifier, the drain, the worker."""
