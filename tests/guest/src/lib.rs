//! ledger-guest
