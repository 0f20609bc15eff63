//! How connections come in, so that nobody can starve a port: places in all and by address, and who goes where there is none (ADR 27).
//!
//! Whoever comes is let in. If an address has all the places that one may have, one of its own connections ends; if there is no place at all, one
//! of the address with the most. The one that ends is the oldest on which nothing was served yet, else the one on which nothing was served for
//! longest. So silent connections keep nobody out: whoever talks is served within milliseconds, and to prevent that, all the places of an address
//! have to be taken anew in each of these.

pub mod pages;
mod quiet;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

pub use quiet::Quiet;

/// How long to wait when nothing can be accepted: out of file descriptors, most likely.
const RETRY: Duration = Duration::from_millis(100);

/// How much those may take who have not shown that they need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub total: usize,
    /// Of them, from one address.
    pub per_address: usize,
    /// A connection ends after so long if nothing was served on it.
    pub unserved: Duration,
}

/// The places behind one listener. A cheap clone.
#[derive(Debug, Clone)]
pub struct Door {
    places: Arc<Mutex<Places>>,
    limits: Limits,
}

/// By the order in which they came.
#[derive(Debug, Default)]
struct Places {
    last: u64,
    taken: BTreeMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    from: IpAddr,
    /// When something was served last, in the same order; 0: never.
    served: u64,
    /// Dropped with the place: the connection ends.
    _kept: oneshot::Sender<()>,
}

impl Places {
    fn count(&mut self) -> u64 {
        self.last = self.last.saturating_add(1);
        self.last
    }

    fn of(&self, from: IpAddr) -> usize {
        self.taken.values().filter(|p| p.from == from).count()
    }

    fn busiest(&self) -> Option<IpAddr> {
        let mut by_address = BTreeMap::<IpAddr, usize>::new();
        self.taken.values().for_each(|p| *by_address.entry(p.from).or_default() += 1);
        by_address.into_iter().max_by_key(|(_, n)| *n).map(|(from, _)| from)
    }

    fn turn_out(&mut self, from: IpAddr) {
        let of_it = self.taken.iter().filter(|(_, p)| p.from == from);
        if let Some(ticket) = of_it.min_by_key(|(ticket, p)| (p.served, **ticket)).map(|(ticket, _)| *ticket) {
            self.taken.remove(&ticket);
        }
    }
}

impl Door {
    /// A door with nobody inside.
    pub fn new(limits: Limits) -> Self {
        Self { places: Arc::default(), limits }
    }

    /// The next connection, with its place. What can't be accepted is tried again for ever.
    pub async fn next(&self, listener: &TcpListener) -> (TcpStream, SocketAddr, Guest) {
        static REFUSED: Quiet = Quiet::new();
        loop {
            match listener.accept().await {
                Ok((stream, from)) => return (stream, from, self.enter(from.ip())),
                Err(error) => {
                    if let Some(unsaid) = REFUSED.says() {
                        tracing::warn!(%error, unsaid, "can't accept a connection");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// A place for one that comes from there; another may have to go for it.
    pub fn enter(&self, from: IpAddr) -> Guest {
        let from = from.to_canonical();
        let (kept, turned_out) = oneshot::channel();
        let mut places = self.lock();
        if places.of(from) >= self.limits.per_address {
            places.turn_out(from);
        }
        if places.taken.len() >= self.limits.total
            && let Some(busiest) = places.busiest()
        {
            places.turn_out(busiest);
        }
        let ticket = places.count();
        places.taken.insert(ticket, Place { from, served: 0, _kept: kept });
        drop(places);
        Guest { mark: Mark { door: self.clone(), ticket }, turned_out }
    }

    /// How many are inside.
    pub fn len(&self) -> usize {
        self.lock().taken.len()
    }

    /// Whether nobody is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection; given back when dropped.
#[derive(Debug)]
pub struct Guest {
    mark: Mark,
    turned_out: oneshot::Receiver<()>,
}

impl Guest {
    /// By which whoever serves it says so.
    pub fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// Does what there is to do for it. `None`: it was cut off, for another or because nothing was served on it for too long.
    pub async fn serve<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        let mark = self.mark();
        let late = async {
            tokio::time::sleep(mark.door.limits.unserved).await;
            if mark.is_served() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            done = work => Some(done),
            _ = &mut self.turned_out => None,
            () = late => None,
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.mark.door.lock().taken.remove(&self.mark.ticket);
    }
}

/// See [`Guest::mark`].
#[derive(Debug, Clone)]
pub struct Mark {
    door: Door,
    ticket: u64,
}

impl Mark {
    /// Something was served on it: others go before it.
    pub fn served(&self) {
        let mut places = self.door.lock();
        let now = places.count();
        if let Some(place) = places.taken.get_mut(&self.ticket) {
            place.served = now;
        }
    }

    fn is_served(&self) -> bool {
        self.door.lock().taken.get(&self.ticket).is_some_and(|p| p.served > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { total: 6, per_address: 3, unserved: Duration::from_secs(5) };

    fn at(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }
    fn is_out(guest: &mut Guest) -> bool {
        guest.turned_out.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_of_an_address_that_was_served_nothing_goes_first() {
        let door = Door::new(LIMITS);
        let mut of_other = door.enter(at(2));
        let mut first = door.enter(at(1));
        let (mut second, mut third) = (door.enter(at(1)), door.enter(at(1)));
        first.mark().served();
        let mut fourth = door.enter(at(1));
        assert!(is_out(&mut second) && !is_out(&mut first), "it was served nothing");
        third.mark().served();
        fourth.mark().served();
        let _fifth = door.enter(at(1));
        assert!(is_out(&mut first), "it was served before the others");
        assert!(!is_out(&mut third) && !is_out(&mut fourth) && !is_out(&mut of_other));
        assert_eq!(door.len(), 4);
    }

    #[test]
    fn without_any_place_one_of_the_address_with_the_most_goes() {
        let door = Door::new(LIMITS);
        let mut alone = door.enter(at(1));
        let mut many: Vec<Guest> = [2, 2, 2, 3, 3].into_iter().map(|n| door.enter(at(n))).collect();
        let mut next = door.enter(at(4));
        assert!(is_out(&mut many[0]), "the oldest of those of the address with three");
        assert!(!is_out(&mut alone) && !is_out(&mut next) && many[1..].iter_mut().all(|g| !is_out(g)));
        assert_eq!(door.len(), 6);
    }

    #[test]
    fn an_address_is_the_same_in_both_spellings_and_a_place_comes_back() {
        let door = Door::new(LIMITS);
        let guests: Vec<Guest> = (0..4).map(|i| door.enter(if i % 2 == 0 { at(1) } else { "::ffff:10.0.0.1".parse().unwrap() })).collect();
        assert_eq!(door.len(), 3);
        drop(guests);
        assert!(door.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_served_nothing_ends_in_time_and_what_is_goes_on() {
        let door = Door::new(LIMITS);
        assert_eq!(door.enter(at(1)).serve(std::future::pending::<()>()).await, None);
        let guest = door.enter(at(1));
        guest.mark().served();
        let long = async { tokio::time::sleep(LIMITS.unserved * 10).await };
        assert_eq!(guest.serve(long).await, Some(()));
        let guest = door.enter(at(1));
        let others: Vec<Guest> = (0..3).map(|_| door.enter(at(1))).collect();
        let begin = tokio::time::Instant::now();
        assert_eq!(guest.serve(std::future::pending::<()>()).await, None);
        assert!(begin.elapsed() < Duration::from_secs(1), "at once");
        drop(others);
    }
}
