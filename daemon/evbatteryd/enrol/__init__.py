"""How an owner's yes reaches us: invitations, the way through Smartcar's Connect and back."""
