"""A completion comes in: whose it is, the transaction it joins, and what follows."""
