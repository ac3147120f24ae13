"""Brings the ledger and Credly together: the bell, the drain, the worker."""
