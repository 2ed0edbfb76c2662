//! Several ways between two ranks, which they try at the same time.

use crate::error::FabricError;
use crate::talk::Talk;

/// The ways that two ranks try, in the same order at both ends, each until one end says why not.
pub(crate) struct Trial<W> {
    pub(crate) ways: Vec<Result<W, String>>,
    /// Why there are not more.
    pub(crate) left_out: Vec<String>,
}

impl<W> Default for Trial<W> {
    fn default() -> Self {
        Self {
            ways: Vec::new(),
            left_out: Vec::new(),
        }
    }
}

impl<W> Trial<W> {
    /// Tells the other end how each one goes, with a `word` for those that go well; declines when none does.
    pub(crate) fn tell(&self, talk: &mut Talk<'_>, word: impl Fn(&W) -> Vec<u8>) -> Result<(), No> {
        if self.ways.iter().all(Result::is_err) {
            return Err(No::Ours(self.reasons()));
        }
        let words = self.ways.iter().map(|way| match way {
            Ok(way) => Ok(word(way)),
            Err(reason) => Err(reason.clone()),
        });
        Ok(talk.say_each(&words.collect::<Vec<_>>())?)
    }

    /// Hears from the other end how each one goes.
    pub(crate) fn hear(&mut self, talk: &mut Talk<'_>) -> Result<(), No> {
        let words = talk.hear_each()?.map_err(No::Theirs)?;
        if words.len() != self.ways.len() {
            return Err(talk.broken().into());
        }
        for (way, word) in self.ways.iter_mut().zip(words) {
            if let (Ok(_), Err(reason)) = (&way, word) {
                *way = Err(reason);
            }
        }
        Ok(())
    }

    /// Returns those that go well so far.
    pub(crate) fn tried(&mut self) -> impl Iterator<Item = &mut W> {
        self.ways.iter_mut().flatten()
    }

    /// Says why the others do not.
    pub(crate) fn reasons(&self) -> String {
        let failed = self.ways.iter().filter_map(|way| way.as_ref().err());
        let reasons = failed.chain(&self.left_out).map(String::as_str);
        reasons.collect::<Vec<_>>().join(", ")
    }
}

/// Why a conversation has come to nothing.
#[derive(Debug)]
pub(crate) enum No {
    /// This end declines, for this reason.
    Ours(String),
    /// The other end has declined.
    Theirs(String),
    /// They cannot go on talking.
    Broken(FabricError),
}

impl No {
    /// Ends the conversation in words that the other end understands.
    pub(crate) fn conclude<T>(self, talk: &mut Talk<'_>) -> Result<Result<T, String>, FabricError> {
        match self {
            Self::Ours(reason) => talk.decline(reason),
            Self::Theirs(reason) => Ok(Err(reason)),
            Self::Broken(error) => Err(error),
        }
    }
}

impl From<FabricError> for No {
    fn from(error: FabricError) -> Self {
        Self::Broken(error)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::channel::Channel;
    use crate::key::Key;

    /// What is left of `ours` and of `theirs` once they have told each other, or why nothing is; ours speak first.
    fn check(ours: [&[u8]; 2], theirs: [&[u8]; 2], expected: [Result<&[usize], &str>; 2]) {
        let soon = || Instant::now() + Duration::from_secs(60);
        let key = Key::from_token("fish");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let found = thread::scope(|scope| {
            let ours = scope.spawn(|| {
                let mut channel = Channel::connect(&address, &key, soon()).expect("same key");
                let talk = &mut Talk::new(&mut channel, soon(), "ways");
                talked(talk, ours, true)
            });
            let (stream, _) = listener.accept().expect("connected to above");
            let mut channel = Channel::accept(stream, &key, soon()).expect("same key");
            let talk = &mut Talk::new(&mut channel, soon(), "ways");
            let theirs = talked(talk, theirs, false);
            [ours.join().expect("no panic"), theirs]
        });
        assert_eq!(
            found,
            expected.map(|it| it.map(<[_]>::to_vec).map_err(str::to_owned))
        );
    }

    /// Two rounds, in each of which those ways fail that have a zero there.
    fn talked(talk: &mut Talk<'_>, rounds: [&[u8]; 2], leads: bool) -> Result<Vec<usize>, String> {
        let mut trial = Trial {
            ways: (0..rounds[0].len()).map(Ok).collect(),
            left_out: Vec::new(),
        };
        let mut converse = |talk: &mut Talk<'_>| {
            for (round, goes_well) in rounds.into_iter().enumerate() {
                if !leads {
                    trial.hear(talk)?;
                }
                for (place, way) in trial.ways.iter_mut().enumerate() {
                    if way.is_ok() && goes_well[place] == 0 {
                        *way = Err(format!("way {place} failed in round {round}"));
                    }
                }
                trial.tell(talk, |way| vec![*way as u8; 3])?;
                if leads {
                    trial.hear(talk)?;
                }
            }
            Ok(trial.tried().map(|way| *way).collect())
        };
        match converse(talk) {
            Ok(left) => Ok(left),
            Err(no) => No::conclude(no, talk).expect("the connection holds"),
        }
    }

    #[test]
    fn both_ends_keep_the_same_ways() {
        let all: &[u8] = &[1, 1, 1];
        check([all; 2], [all; 2], [Ok(&[0, 1, 2]); 2]);
        check([&[1, 0, 1], all], [all; 2], [Ok(&[0, 2]); 2]);
        check([all; 2], [all, &[0, 1, 1]], [Ok(&[1, 2]); 2]);
        check([&[1, 0, 1], all], [all, &[0, 0, 1]], [Ok(&[2]); 2]);
    }

    #[test]
    fn where_no_way_is_left_both_say_why() {
        let ours = "way 0 failed in round 0";
        let theirs = "the peer says: way 0 failed in round 0";
        check([&[0], &[1]], [&[1]; 2], [Err(ours), Err(theirs)]);
        check([&[1]; 2], [&[0], &[1]], [Err(theirs), Err(ours)]);
        let ours = "way 0 failed in round 1, the peer says: way 1 failed in round 0";
        let theirs = format!("the peer says: {ours}");
        let one_each = [Err(ours), Err(&*theirs)];
        check([&[1, 1], &[0, 1]], [&[1, 0], &[1, 1]], one_each);
    }
}
