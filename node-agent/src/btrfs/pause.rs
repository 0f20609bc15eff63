//! A kernel that goes silent in the middle of a send, for tests; compiled out of release builds.
//!
//! `DOTGRAFT_SEND_PAUSE` is `BYTES:SECONDS`: the read that would bring the stream over so many bytes takes so long, once in each
//! send. 0 bytes: the first read. To whoever reads, it is as if the kernel compared trees.

#[cfg(debug_assertions)]
pub(super) use armed::Pause;
#[cfg(not(debug_assertions))]
pub(super) use inert::Pause;

#[cfg(not(debug_assertions))]
mod inert {
    #[derive(Debug, Default)]
    pub(in super::super) struct Pause;

    impl Pause {
        #[allow(clippy::unused_self)] // same shape as the armed one
        pub(in super::super) fn before_handing_over(&mut self, _: u64, _: u64) {}
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::time::Duration;

    /// What is left to do of what the environment asks for.
    #[derive(Debug)]
    pub(in super::super) struct Pause(Option<(u64, Duration)>);

    impl Default for Pause {
        fn default() -> Self {
            let Ok(text) = std::env::var("DOTGRAFT_SEND_PAUSE") else { return Self(None) };
            let pause = parse(&text);
            if pause.is_some() {
                tracing::warn!(pause = %text, "a send will pause");
            } else {
                tracing::error!(pause = %text, "not understood; want BYTES:SECONDS");
            }
            Self(pause)
        }
    }

    fn parse(text: &str) -> Option<(u64, Duration)> {
        let (bytes, seconds) = text.split_once(':')?;
        Some((bytes.parse().ok()?, Duration::from_secs(seconds.parse().ok()?)))
    }

    impl Pause {
        /// `n` bytes are there after `sent`.
        pub(in super::super) fn before_handing_over(&mut self, sent: u64, n: u64) {
            if let Some((_, pause)) = self.0.take_if(|(at, _)| sent.saturating_add(n) > *at) {
                std::thread::sleep(pause);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_pause_comes_once_where_it_was_asked_for() {
            let took = |pause: &mut Pause, sent| {
                let start = std::time::Instant::now();
                pause.before_handing_over(sent, 10);
                start.elapsed() >= Duration::from_secs(1)
            };
            let mut pause = Pause(parse("15:1"));
            assert_eq!([took(&mut pause, 0), took(&mut pause, 10), took(&mut pause, 20)], [false, true, false]);
            assert!(took(&mut Pause(parse("0:1")), 0));
            assert!(parse("x:1").is_none() && parse("1").is_none());
        }
    }
}
