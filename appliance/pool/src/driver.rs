//! Turns the scheduler's effects into calls and its inputs into turns: one task, on one core.

use crate::{
    connection::Connection,
    handle::Inputs,
    pressure,
    scheduler::{Effect, Input, Reading, Scheduler, Sensor},
    warden::Warden,
};
use appliance_runtime::{spawn, timeout};
use sandbox_kernel::{cgroup::Gauges, pressure::MemoryPressure};
use sandbox_wire::warden::{Call, InstanceId, ModelEntry, Reply, WardenError};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// What the pool may use of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Cores that may compute.
    pub cores: u32,
    /// Memory that functions may have, bytes.
    pub memory: u64,
}

/// Runs the pool on the current core until every handle and the warden are gone. Without the kernel's word of how short memory
/// is, the ledger counts alone.
pub async fn run(inputs: Inputs, warden: Warden, resources: Resources, pressure: Option<MemoryPressure>) {
    let gauges = SharedGauges::default();
    let mut driver = Driver { warden, connections: HashMap::new(), gauges: gauges.clone(), inputs };
    let sensor = Sensor::new(move |instance| gauges.read(instance));
    let mut scheduler = Scheduler::new(resources.cores, resources.memory).with_sensor(sensor);
    driver.warden.report_to(driver.inputs.sender());
    driver.models().await.into_iter().for_each(|model| scheduler.learn(model.digest, model.bytes));
    if let Some(pressure) = pressure {
        pressure::watch(pressure, driver.inputs.sender());
    }
    scheduler.set_wall(Instant::now(), unix_s());
    loop {
        let effects = match driver.next(scheduler.next_due()).await {
            Turn::Input(mut input) => {
                driver.before(&mut input);
                scheduler.handle(Instant::now(), input)
            }
            Turn::Due => {
                scheduler.set_wall(Instant::now(), unix_s());
                scheduler.tick(Instant::now())
            }
            Turn::End => return,
        };
        effects.into_iter().for_each(|effect| driver.perform(effect));
    }
}

enum Turn {
    Input(Input),
    Due,
    End,
}

struct Driver {
    warden: Warden,
    connections: HashMap<InstanceId, Connection>,
    gauges: SharedGauges,
    inputs: Inputs,
}

impl Driver {
    /// The models that there are.
    async fn models(&self) -> Vec<ModelEntry> {
        match self.warden.call(Call::Models, None).await {
            Ok(Reply::Models(models)) => models,
            unexpected => {
                tracing::warn!(?unexpected, "the lengths of models are not known");
                Vec::new()
            }
        }
    }

    async fn next(&self, due: Option<Instant>) -> Turn {
        let input = self.inputs.receiver.recv_async();
        let received = match due.map(|due| due.saturating_duration_since(Instant::now())) {
            None => input.await,
            Some(left) if left.is_zero() => return Turn::Due,
            Some(left) => match timeout(left, input).await {
                Ok(received) => received,
                Err(_) => return Turn::Due,
            },
        };
        received.map_or(Turn::End, Turn::Input)
    }

    /// Opens the connection of an instance that woke, drops that of one that is gone.
    fn before(&mut self, input: &mut Input) {
        match input {
            Input::Woken { result: Ok(awake), .. } => {
                if let Some(gauges) = self.warden.take_gauges(awake.instance) {
                    self.gauges.lock().insert(awake.instance, gauges);
                }
                let socket = self.warden.take_socket(awake.instance);
                let opened = socket.map(|fd| Connection::open(awake.instance, fd, self.inputs.sender()));
                match opened {
                    Some(Ok(connection)) => drop(self.connections.insert(awake.instance, connection)),
                    Some(Err(_)) | None => self.perform(Effect::Stop(awake.instance)),
                }
            }
            Input::Exited { instance, .. } => {
                self.connections.remove(instance);
                self.gauges.lock().remove(instance);
            }
            _ => {}
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Wake { wake, spec } => self.warden.wake(wake, *spec),
            Effect::Send { instance, message } => {
                if let Some(connection) = self.connections.get(&instance) {
                    connection.send(message);
                }
            }
            Effect::Cores { instance, cores } => self.warden.keep_on(instance, cores.into_iter().collect()),
            Effect::Stop(instance) => {
                let warden = self.warden.clone();
                spawn(async move {
                    // An instance that is gone already is what was wanted.
                    if let Err(error) = warden.call(Call::Stop { instance }, None).await {
                        tracing::debug!(instance, %error, "stop");
                    }
                });
            }
            Effect::Store(function) => {
                let (warden, inputs) = (self.warden.clone(), self.inputs.sender());
                spawn(async move {
                    match warden.call(Call::Store { function: function.clone() }, None).await {
                        // Nothing to store is what was wanted.
                        Ok(_) | Err(WardenError::SnapshotMissing { .. }) => tracing::debug!(%function, "stored"),
                        Err(error) => tracing::warn!(%function, %error, "cannot store"),
                    }
                    drop(inputs.send(Input::Stored(function)));
                });
            }
        }
    }
}

/// Where to read what instances use.
#[derive(Clone, Debug, Default)]
struct SharedGauges(Arc<Mutex<HashMap<InstanceId, Gauges>>>);

impl SharedGauges {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Gauges>> {
        // No code here can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, instance: InstanceId) -> Option<Reading> {
        let (cpu_us, used_bytes) = self.lock().get(&instance)?.read().ok()?;
        Some(Reading { cpu_us, used_bytes })
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
