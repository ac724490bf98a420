//! What is answered: takes connections, and says so.

use crate::{control::Order, exit::Failure, setup::ServerSetup};

/// Serves until told to stop.
pub(crate) fn run(mut setup: ServerSetup) -> Result<(), Failure> {
    setup.ready.announce().map_err(Failure::of("speak to", "the supervisor"))?;
    while let Order::Reload(config) = setup.orders.next()? {
        setup.config = *config;
    }
    Ok(())
}
