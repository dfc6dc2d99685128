"""Files as every other room opens, writes, locks and checks them: all that others may have made goes through here."""
